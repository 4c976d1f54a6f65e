"""Numerical comparison with reference values of the released code and the published formulas."""
