"""Known bugs, put into the product for one simulated run each: the kit must find all of them."""
