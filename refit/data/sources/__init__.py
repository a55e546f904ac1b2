"""Where the labelled images come from: each module lists the images of one kind of source, without decoding them."""
