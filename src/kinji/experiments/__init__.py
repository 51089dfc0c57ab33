"""One module per experiment: parameters in, one record out."""
