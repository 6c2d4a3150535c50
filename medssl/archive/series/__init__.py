"""From the instances of one series to its volumes, each slice in one of them or left with a reason.

`duplicates` keeps one of equal files; `splitting` parts what cannot be one volume, sorts by position and cuts at gaps;
`uniform` finds at once the series that are one volume at first sight.
"""
