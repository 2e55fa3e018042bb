"""Functional entropy, its log-Sobolev bound and its tensorisation (Eq. 1-3), exactly, by quadrature and by
Monte Carlo.
"""
