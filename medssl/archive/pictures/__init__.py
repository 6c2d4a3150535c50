"""PNG, JPEG and TIFF: 2D images without a place in space, as arrays (`files`)."""
