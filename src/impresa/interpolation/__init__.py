"""Weights between those of a pretrained pair and of its fine-tuning (WiSE-FT, Wortsman et al. 2022)."""
