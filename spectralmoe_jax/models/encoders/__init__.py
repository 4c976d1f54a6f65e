"""Encoders: the ViT families (DINOv3, DINOv2, CLIP, EVA-02), SAM and DOFA."""
