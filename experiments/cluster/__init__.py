"""One study on several processes and machines, through Dask distributed: where workers come from, what they run, how units reach them."""
