"""One file per patch; each gives its sites through ``sites()``, made once."""
