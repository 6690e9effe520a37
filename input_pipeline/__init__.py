"""Where images come from, who trains on them, and what happens to them.

sources       the labelled images and the images to predict
folds         who trains and who validates
decoding      bytes to RGB pixels, whatever the file holds
ops           the torchvision operations on one image
degradations  the stronger chain: gamma, blur, downscale, JPEG, dropout
augment       what happens to one image: training chain and evaluation views
sampling      which image comes when, and how often
pipeline      the grain chain that makes batches of NumPy arrays
contact_sheet a picture of all that
audit         what is wrong with the data
mixing        what happens to a batch, on the device (the only module with JAX)
"""
