"""Stacking: logits of several models in, one submission with a score out.

Training and stacking meet only in files (`run_folder.predictions`), so the
package works on the logits of any tool. It imports no JAX.
"""
