"""Where images come from, who trains on them, and what happens to them.

sources        the labelled images and the images to predict
folds          who trains and who validates
decoding       bytes to RGB pixels, whatever the file holds
transforms     what happens to one image, and on the device to a batch
backends       the pixel operations behind that, in Pillow and in C++
samplers       which image comes when, and how often
loader         the grain chain that makes batches of NumPy arrays
inspection     every image decoded once, and what was measured of it
audit          what is wrong with the data; near_copies, mask_audit, pair_audit
contact_sheet  a picture of all that
coco           masks to COCO annotations and back
"""
