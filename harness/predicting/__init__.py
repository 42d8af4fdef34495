"""What a model says of pictures that people bring: no data set, no truth, no metric.

sources      files, folders and addresses -> pictures, upright
web          one picture from an http(s) address, of bounded size and time
predictions  what a model says of a picture: as text, as JSON, drawn
asking       a loaded model and pictures -> predictions
output       pictures into a file or a folder
"""
