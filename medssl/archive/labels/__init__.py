"""Labels as hospitals have them: DICOM SEG, surfaces, RTSTRUCT, NRRD and NIfTI become label maps exactly on an image's grid. No torch."""
