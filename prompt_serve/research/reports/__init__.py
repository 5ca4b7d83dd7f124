"""One HTML file that shows what runs of a protocol gave, with the figures that the papers print."""
