"""The engine that needs only registry packages, with T5X's names, arguments and checkpoint layout."""
