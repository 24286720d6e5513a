"""Caffe's text format, read strictly and written readably."""

from sparknet.caffe.prototxt.parse import Parsed, parse_text, read_content, read_text
from sparknet.caffe.prototxt.print import format_text

__all__ = ["Parsed", "format_text", "parse_text", "read_content", "read_text"]
