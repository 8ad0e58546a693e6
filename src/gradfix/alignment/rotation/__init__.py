"""Procrustes and permutation of τ itself, never tried by auto."""
