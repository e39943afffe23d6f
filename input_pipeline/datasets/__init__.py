"""One module per source of radiographs: where its files lie, what its tables say, how a record is made of them."""
