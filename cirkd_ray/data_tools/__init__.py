"""What people do with data sets besides training: fetch, check, show and prepare them."""
