"""From files to instances: what each file is, read from its header in worker processes, under limits; pixels are never decoded here.

`scan` hands shards of names to the workers and opens each file; `dicom` says what one DICOM header holds and what it alone decides.
"""
