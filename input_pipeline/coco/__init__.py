"""Masks as COCO annotations, and COCO annotations as masks.

COCO (Lin et al. 2014, arXiv:1405.0312) keeps objects in a JSON file: images,
categories and annotations, each of which is one region of one category in one
image, as polygons or as run lengths (RLE). What polygons mean is what
pycocotools makes of them.

regions    the pixels of a polygon or of run lengths, and run lengths of pixels
outlines   polygons of pixels
to_coco    the command that writes annotations
from_coco  the command that reads them
"""
