"""Every file format, one module each."""
