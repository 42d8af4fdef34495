"""The drawing room: what a model says of a picture, drawn into the picture.

Pure functions from PIL images and numpy arrays to new PIL images in RGB; nothing that is given changes, nothing is read or
written (but by `opening`). Every text is readable at the size at which the picture is shown, and no meaning is carried by colour alone.

    opening     files as people made them: upright, with the formats of phones
    colours     a palette that colour-blind people can tell apart
    lettering   the font, wrapping and shortening
    sheets      sizes, grids of pictures
    boxes       boxes with labels, instance masks
    label_maps  semantic label maps over the picture, with a legend
    captions    texts and bars of scores under a picture
"""
