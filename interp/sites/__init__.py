"""WHERE: sites (places in a network), units (indices at sites) and the anatomy that says where a
module keeps them."""
