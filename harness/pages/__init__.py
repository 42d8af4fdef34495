"""Pages that people look at: self-contained HTML files made from run folders and trainings, which need no network and no server.

run.py, image.py, training.py and index.py make one kind of page each; the templates, style and script lie beside them.
"""
