"""A parsed HTML page for tests."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
  """Tags with their attributes, and text by tag."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.text, self._open = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag != "wbr":
      self._open.append(tag)

  def handle_endtag(self, tag):
    while self._open and self._open.pop() != tag:
      pass

  def handle_data(self, data):
    self.text.append((self._open[-1] if self._open else "", data))

  def of(self, tag):
    return [attrs for name, attrs in self.tags if name == tag]

  def words(self, tag):
    return [text for name, text in self.text if name == tag]

  def missing_elements(self):
    """The ids that the scripts read and no element has."""
    read = set(re.findall(r'get\("(\w+)"\)', "".join(self.words("script"))))
    assert read, "the pattern finds no id"
    return read - {attrs.get("id") for _, attrs in self.tags}
