"""Measurements. Run one with: python -m benchmarks.NAME"""
