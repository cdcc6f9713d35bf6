"""Kronecker-factored curvature (K-FAC): the covariances of linear maps that every score is made of.

What makes it hard: a score is only as good as its factors, whose rows must belong to the right samples, in any module,
without registering anything. One batch goes through these files in this order:

    recorder          the calls of linear maps during a forward pass
    batch_layout      which rows of a call belong to which sample; found out once per model
    capture           inputs, output gradients and pseudo-gradients of every call on one batch
      loss_metric       Hessian of the loss at the outputs, by closed_forms or differentiated_loss
      layer_inputs      dense rows, or patches of a convolution
    accumulate        sums over samples, and some samples one by one (per_sample)
    folds             the sums of one half of the samples, over batches and ranks
    factors           the Kronecker factors and their inverses: the notation is explained there
"""
