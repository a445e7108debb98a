"""Throws in serverClassFactory."""


def serverClassFactory(interface):
    raise KeyError("configuration")
