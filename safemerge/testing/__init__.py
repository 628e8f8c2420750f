"""The shipped test kit: pico models and conformance cases for extensions."""
