"""What the studies of compute measure and find: grids of models, and curves over training."""
