"""What a row is: columns and their types, images and their bytes, damage and how much of it is allowed."""
