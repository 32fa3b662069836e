"""One cell of the map with a pretrained language model and a real vocabulary.

The teacher is SmolLM2-135M-Instruct, the student its first decoder layers after a short recovery
training, and the texts are the teacher's own answers to short questions. Text, no images. Every
part is kept in a work folder, so that an interrupted run goes on where it stopped.
"""
