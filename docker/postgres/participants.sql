-- The databases of the participants of sagas. The image runs this once, on an empty volume.
CREATE DATABASE inventory;
CREATE DATABASE payments;
