"""Images: found, decoded, split, on the device."""
