for (const e of document.querySelectorAll('.math'))
  katex.render(e.textContent, e, {displayMode: e.tagName === 'DIV', throwOnError: false});
