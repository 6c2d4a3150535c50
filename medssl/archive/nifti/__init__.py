"""NIfTI: reading and writing files (`files`), what their names say (`names`), and of which modality they are (`modality`)."""
