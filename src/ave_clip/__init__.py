"""placeholder: written by the founder who owns the package wiring"""
