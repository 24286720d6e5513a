"""The same task as users of different libraries would write it: rows of features and labels in, accuracy out."""
