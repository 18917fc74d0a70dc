"""Images: listed, decoded, split, on the device."""
