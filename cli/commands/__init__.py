"""One module for each command of tgp-jobs; main.py names them."""
