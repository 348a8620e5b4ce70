"""One file per patch; ``sites(code)`` gives its places in a carrier's code, made once for each."""
