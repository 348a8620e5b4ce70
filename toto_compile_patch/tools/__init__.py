"""What people look at: measurements and reports, built on the public functions."""
