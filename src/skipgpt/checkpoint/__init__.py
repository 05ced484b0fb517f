"""Checkpoints: their folder, what they say about themselves, their tensors, loading and saving.

info.py     fields and version of skipgpt_config.json, and the model card made of them
folder.py   finding, reading and verifying a folder
tensors.py  the trained tensors (routers, stand-ins, LoRA): gathered, and loaded strictly
saving.py   writing a folder
loading.py  loading it onto the base model that it was made from
"""
