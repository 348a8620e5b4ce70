"""Reads people's files: tables of whatever dialect, their times, and the series in them.

Needs pandas, and neither torch nor toto, so that what is wrong with a file is said at once.
"""
