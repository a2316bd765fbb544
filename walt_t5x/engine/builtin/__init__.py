"""The engine that needs nothing but registry packages, with T5X's names, arguments and checkpoint layout."""
