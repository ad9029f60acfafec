"""Files of weights that other libraries have written, and files for them."""
