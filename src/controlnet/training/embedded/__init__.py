"""How the embedded base is made, from nothing; `recipe` tells the order."""
