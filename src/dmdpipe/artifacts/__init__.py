"""The store: the steps, where their files live, how these are written, and manifests that vouch for them."""
