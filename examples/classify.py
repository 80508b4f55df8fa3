"""Classify CIFAR-10 images with a network that comes from a .pemn file and nothing else.

python classify.py net.pemn cifar10-200.npz
"""

import sys

import numpy as np
import torch

import pemncodec

# What the network was trained on: pixels scaled by the training set's mean and deviation.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)

model = pemncodec.decode(sys.argv[1])
with np.load(sys.argv[2]) as data:
    images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])

mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
with torch.no_grad():
    predicted = model((images / 255 - mean) / std).argmax(dim=1)
correct = int((predicted == labels).sum())
print(f"{correct} of {len(labels)} images classified correctly ({correct / len(labels):.1%})")
