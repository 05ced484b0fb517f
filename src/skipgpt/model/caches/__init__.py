"""Caches of keys and values.

policy.py         which cache a forward may use
growing_cache.py  preallocates space for further tokens
skip_cache.py     holds kept tokens only, `kv="skip"`
"""
