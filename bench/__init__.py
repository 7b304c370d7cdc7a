"""Measurements: quorate beside etcd and PySyncObj, under kill -9, and at a million keys."""
